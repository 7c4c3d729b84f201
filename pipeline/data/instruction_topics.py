"""What the generated instructions are about: by kind of task, each with words of its own field.

A line is `subject: words`. The words are what an instruction asks to use or to avoid.
"""

from typing import NamedTuple


class Subject(NamedTuple):
    text: str
    words: tuple[str, ...]


def _parse_subjects(text: str) -> tuple[Subject, ...]:
    lines = [line.rpartition(": ") for line in text.strip().splitlines()]
    return tuple(Subject(subject, tuple(words.split())) for subject, _, words in lines)


CONCEPTS = _parse_subjects("""
photosynthesis: sunlight leaf oxygen sugar energy
compound interest: savings bank growth yearly money
the water cycle: rain cloud ocean vapour river
plate tectonics: earthquake crust mountain ocean heat
the greenhouse effect: carbon heat planet gas sunlight
natural selection: species survive trait offspring change
the immune system: virus antibody cell fever defence
gravity: mass planet fall orbit weight
electric current: wire battery charge circuit voltage
the placebo effect: medicine belief patient trial doctor
supply and demand: price market buyer seller shortage
inflation: prices wages money bank cost
the electoral college: vote state president candidate ballot
opportunity cost: choice time money value decision
machine learning: data computer pattern model example
public key encryption: message secret lock key safe
the internet of things: sensor device network home data
blockchain: record ledger trust network block
open source software: code licence community program share
cloud computing: server data internet storage company
the Doppler effect: sound wave siren pitch distance
black holes: star light gravity space mass
the Big Bang: universe space time energy galaxy
the seasons: tilt summer winter sun orbit
ocean tides: moon gravity shore water beach
continental drift: continent fossil ocean coast rock
vaccination: virus immune dose protection cell
antibiotic resistance: bacteria medicine doctor dose infection
the human digestive system: stomach food enzyme intestine nutrient
the circulatory system: heart blood oxygen artery lungs
sleep cycles: dream night brain rest hours
short-term memory: brain attention number forget repeat
cognitive bias: mind decision judgment error evidence
the bystander effect: crowd help emergency stranger responsibility
confirmation bias: belief evidence opinion search facts
the French Revolution: king bread citizen Paris liberty
the Silk Road: trade caravan desert merchant spice
the Industrial Revolution: factory steam machine worker city
the fall of the Roman Empire: army border emperor tax trade
the Renaissance: artist Italy painting science patron
the printing press: book paper ink reader knowledge
the Cold War: treaty missile border alliance spy
the Great Depression: bank job market hunger crash
democracy: vote citizen law freedom debate
the separation of powers: court law president parliament balance
freedom of speech: opinion law press debate protest
copyright: author song licence permission book
a mortgage: house bank payment interest loan
a credit score: loan bank debt payment history
progressive taxation: income rate state salary budget
gross domestic product: economy country output goods growth
insurance: risk premium accident payment contract
an emergency fund: savings job bill month repair
recycling: plastic glass bin waste factory
renewable energy: wind solar power grid storage
nuclear fission: atom reactor neutron fuel energy
biodiversity: species forest habitat insect balance
composting: soil kitchen worm garden waste
soil erosion: rain wind root farm field
the ozone layer: radiation gas skin atmosphere ban
fermentation: yeast sugar bread beer bubbles
the Maillard reaction: heat bread crust flavour meat
sourdough starter: flour water yeast jar bubbles
food preservation: salt jar cold sugar smoke
perspective in drawing: horizon line depth paper distance
the rule of thirds: photo frame grid subject balance
jazz improvisation: rhythm melody solo chord band
the blues scale: note guitar chord song sadness
a sonnet: line rhyme love rhythm poet
irony: meaning joke contrast reader surprise
the placement of commas: sentence pause clause list reader
the offside rule in football: defender ball goal pass flag
chess openings: pawn knight centre king plan
the stock market: share company price broker risk
mindfulness: breath attention calm thought moment
""")

ACTIVITIES = _parse_subjects("""
growing tomatoes on a balcony: pot sunlight water soil seedling
baking sourdough bread: flour oven crust starter dough
learning to play the guitar: chord finger string practice rhythm
running a first marathon: shoes training pace rest distance
learning Spanish as an adult: verb practice accent vocabulary lesson
saving money on groceries: list market budget season coupon
moving to a new city: box neighbour rent friend job
adopting a rescue dog: shelter leash patience vet trust
photographing birds: lens light patience tree feather
cooking for one: recipe leftovers pan freezer portion
repairing a bicycle: chain wheel tyre brake tool
knitting a scarf: wool needle stitch colour pattern
keeping bees: hive honey queen smoke summer
painting with watercolours: brush paper pigment water wash
writing a first novel: chapter character draft habit plot
training for a triathlon: swim bike run rest coach
camping with small children: tent fire blanket forest torch
hiking in the mountains: boots map weather summit water
brewing coffee at home: beans grinder water filter cup
starting a podcast: microphone episode listener topic editing
learning to code: program error practice project keyboard
giving a speech: audience voice breath slide story
preparing for a job interview: question suit company answer confidence
studying for final exams: notes sleep schedule quiz library
meditating every morning: breath silence cushion timer calm
working from home: desk screen lunch focus meeting
raising chickens: coop egg grain fox garden
restoring old furniture: wood paint sandpaper varnish chair
swimming in cold water: breath wetsuit lake shiver towel
learning to drive: mirror clutch road instructor parking
planting a herb garden: basil mint pot soil sun
throwing a dinner party: guest menu candle table dessert
making pasta by hand: flour egg dough roller sauce
playing chess online: opening clock rating pawn endgame
collecting stamps: album country paper value hobby
building a birdhouse: wood nail roof hole paint
learning to juggle: ball rhythm throw hand practice
taking better phone photos: light angle lens focus background
reducing plastic waste: bottle bag jar shop habit
teaching a child to read: letter story sound patience book
travelling alone: ticket map hostel safety freedom
caring for houseplants: leaf water window soil pot
doing yoga after work: mat stretch breath balance calm
singing in a choir: voice melody breath concert harmony
volunteering at a food bank: meal shelf donation neighbour kindness
""")

PLACES = _parse_subjects("""
Lisbon: tram hill river tile café
Kyoto: temple garden tea bamboo lantern
Marrakesh: market spice lamp courtyard mint
the Scottish Highlands: mist lake castle sheep valley
Venice: canal boat bridge mask square
the Sahara: dune camel star silence heat
New Orleans: jazz street river gumbo balcony
Reykjavik: geyser ice wind pool light
Buenos Aires: tango steak café football avenue
Istanbul: bazaar ferry mosque tea bridge
Cape Town: mountain ocean penguin wine wind
Vienna: waltz palace coffee cake opera
the Amazon rainforest: river parrot tree canoe rain
Havana: car music cigar plaza ocean
Prague: bridge clock castle beer river
a small fishing village in Norway: boat harbour cod cliff snow
a crowded railway station in Mumbai: platform tea whistle crowd ticket
Tokyo: neon train noodle crowd rain
an old lighthouse on a rocky coast: lamp storm wave stairs keeper
a farm in Tuscany: olive grape dog hill bread
a busy Saturday market: fruit stall voice basket coin
the city zoo: lion cage ticket child keeper
a quiet public library: shelf lamp reader page whisper
a ski resort in the Alps: slope lift snow cabin cocoa
an abandoned railway station: platform rust clock weed ticket
a rooftop garden in Singapore: orchid skyline pool humidity vine
the Grand Canyon: rock river sunset trail eagle
a village bakery at dawn: oven loaf flour lamp customer
the beach in winter: sand wind gull scarf wave
a desert town with one petrol station: dust road pump heat sign
""")

PRODUCTS = _parse_subjects("""
a foldable electric bike: battery commute wheel city weight
a self-watering flowerpot: plant water holiday soil leaf
a reusable coffee cup: lid travel plastic hot morning
a solar phone charger: sun battery camping cable pocket
noise-cancelling headphones: music silence flight comfort battery
a smart alarm clock: morning light sleep phone sound
a waterproof backpack: rain laptop zip strap hike
a robot vacuum cleaner: dust carpet floor app quiet
a cast-iron frying pan: heat steak handle kitchen rust
a weighted blanket: sleep warm stress bed cotton
a standing desk: back office height screen posture
a beginner's telescope: star moon lens sky tripod
a handmade leather wallet: stitch card pocket gift coin
a subscription box for tea lovers: leaf cup flavour month aroma
a language learning app: lesson word phone habit streak
a wooden toy train: child track colour wheel gift
organic dog food: bowl meat vet tail health
a bamboo toothbrush: plastic teeth forest bathroom handle
a two-person tent: rain pole camping zip stars
a portable espresso maker: coffee beans travel pressure cup
a fitness tracker: heart steps sleep wrist battery
an electric kettle: water tea steam switch kitchen
a mystery novel set in Iceland: snow detective village secret storm
a board game about pirates: treasure ship card dice island
hiking boots: trail grip mud ankle leather
a garden hammock: summer tree nap rope shade
a scented candle: vanilla evening wax flame calm
a digital piano: keys pedal practice sound lesson
a meal kit for busy families: dinner recipe vegetable box time
a pocket notebook: paper pen idea cover list
""")

# After `an email`, `a letter`, `a message`.
LETTERS = _parse_subjects("""
asking my landlord to repair the heating: cold radiator rent week plumber
inviting my colleagues to a farewell lunch: table noon restaurant goodbye thanks
thanking my former teacher: lesson school patience memory book
apologising to a friend for missing her wedding: flight sorry photo dinner love
asking for a refund for a broken toaster: receipt money shop smoke week
requesting two weeks of leave in August: holiday project calendar team family
complaining about noise from the flat upstairs: music night sleep wall neighbour
cancelling a gym membership: contract month fee move bank
asking my professor for an extension: essay deadline illness week chapter
introducing myself to a new team: project role coffee experience start
reminding a client about an unpaid invoice: payment amount bank date reminder
congratulating a cousin on her new baby: joy sleep gift family name
asking the city to fix a dangerous crossing: traffic child light school sign
declining a job offer: salary decision thanks company future
recommending a student for a scholarship: talent grades effort university character
asking a neighbour to feed my cat: key food bowl weekend litter
telling my parents that I am changing careers: job school money dream support
reporting a lost suitcase to an airline: flight tag colour airport address
asking a local bakery to sponsor our football team: shirt logo season bread children
welcoming a new family to the street: street house children cake school
asking a museum about guided tours: group ticket painting hour guide
confirming a dentist appointment: time tooth clinic address insurance
asking my boss for a raise: salary results year project value
inviting an author to speak at our school: book student library story question
explaining to customers why an order is late: delivery warehouse delay apology discount
asking an old friend to meet again: coffee years memory train weekend
offering to help at the animal shelter: dog weekend walk food volunteer
asking a hotel to change my booking: room date night breakfast payment
telling the team about a new meeting schedule: Monday calendar room hour notes
resigning from a committee: time thanks vote replacement work
selling a used piano to an interested buyer: price keys sound transport tuning
asking a doctor's office for test results: blood nurse phone result date
thanking volunteers after a charity run: runner water money medal morning
asking a restaurant to cater a wedding: menu guest dessert price vegetarian
to my future self: dream health home courage smile
persuading the school board to keep the library open: book student budget reading quiet
""")

CHARACTERS = _parse_subjects("""
a lighthouse keeper: lamp stairs storm
a retired boxer: glove ring scar
a nervous young wizard: wand spell robe
a taxi driver in Mumbai: meter traffic horn
a lonely twin: letter kitchen secret
a robot gardener: rose sensor rust
a night-shift nurse: ward coffee corridor
an old fisherman: net boat tide
a talking crow: feather roof shiny
a boy with a broken kite: string wind hill
a bored princess: tower crown window
a train conductor: whistle ticket platform
an astronaut: helmet orbit window
the last librarian on Earth: shelf dust page
a clumsy detective: clue hat magnifier
a violin maker: wood bow varnish
a street cat: alley whisker fence
a small-town baker: flour oven dawn
a shy ghost: attic sheet candle
a pirate who fears water: ship rope parrot
a mathematician: chalk number proof
a lost tourist: map hotel camera
a grandmother who loves motorbikes: engine helmet road
a snowman: carrot scarf winter
a postman: bicycle stamp envelope
""")

EVENTS = _parse_subjects("""
finds a map inside an old coat: lining ink treasure
forgets an important promise: clock apology regret
receives a letter from the future: date envelope warning
has to spend a night in a museum: statue torch guard
discovers a door in the cellar: key hinge tunnel
misses the last bus home: rain bench moon
makes friends with a dragon: fire wing cave
wins a contest by mistake: prize judge applause
must cross the desert in three days: sand water star
learns to dance: music shoe partner
loses the only copy of a song: melody paper wind
saves the village from a flood: river bridge boat
wakes up in the year 2300: machine city glass
swaps lives with a stranger for one day: mirror name home
tells the truth for a whole week: lie smile trouble
finds a clock that runs backwards: hand hour youth
plans a surprise that goes wrong: cake friend balloon
hears a voice on an old radio: static message night
opens a café on the moon: cup crater visitor
searches for a missing dog: leash poster bark
inherits a house full of doors: key corridor lawyer
gets stuck in a lift with a rival: button silence joke
meets a childhood friend at the airport: flight coffee memory
refuses to grow up: toy birthday mirror
builds a boat out of books: page glue wave
""")

THEMES = _parse_subjects("""
the first snow of the year: flake window silence boot
a cup of tea on a rainy day: steam rain window warm
the sea at night: wave moon salt dark
growing old: hair memory chair time
a lost umbrella: rain bus handle stranger
my grandfather's hands: work garden ring wood
autumn leaves: wind tree red ground
the last day of school: bell friend summer desk
a city that never sleeps: neon street siren window
missing someone far away: letter phone night ocean
the smell of fresh bread: oven morning crust street
a cat asleep in the sun: paw dream warm window
the night sky over the desert: star sand silence fire
friendship: laugh road trust hand
an old wooden table: family scar bread story
the courage to begin again: road dawn fear step
waiting for a train: platform clock bench whistle
a thunderstorm in July: lightning roof rain heat
the moon and the tide: water pull silver shore
a child's first bicycle: wheel knee hill helmet
a garden in spring: seed bee petal rain
losing a football match: goal mud whistle tears
Monday mornings: alarm coffee bus yawn
the colour blue: sky ink sea quiet
a mother's advice: kitchen voice heart road
an empty theatre: curtain seat echo stage
hope in hard times: light winter seed hand
a spider building its web: thread dew corner patience
the road home: lamp gate dog evening
pancakes: butter syrup pan Sunday
""")

# Two things, with `and` between them.
PAIRS = _parse_subjects("""
tea and coffee: caffeine cup taste morning
cats and dogs: pet walk independent loyal
renting and buying a home: mortgage rent freedom repair
trains and planes: ticket airport comfort speed
paper books and e-readers: page battery shelf light
city life and country life: noise space job nature
electric cars and petrol cars: battery fuel price range
running and cycling: knee speed road fitness
cash and credit cards: debt coin shop safety
public schools and private schools: teacher fee class student
butter and olive oil: flavour heat fat kitchen
working in an office and working from home: desk colleague commute focus
apples and oranges: peel vitamin sweet juice
summer holidays and winter holidays: sun snow beach cabin
a laptop and a tablet: keyboard screen battery weight
novels and short stories: plot chapter character ending
Python and JavaScript: browser syntax library beginner
a democracy and a monarchy: king vote law power
the violin and the cello: string bow sound size
alligators and crocodiles: snout jaw river teeth
solar power and wind power: panel turbine weather cost
gas stoves and induction stoves: heat pan flame safety
swimming and weight training: muscle water gym heart
tents and caravans: rain comfort cost space
cinema and television: screen popcorn series sofa
baking and frying: oven oil crust fat
chess and poker: luck strategy money opponent
savings accounts and shares: risk interest bank growth
glass bottles and plastic bottles: recycling weight cost waste
introverts and extroverts: energy party quiet friend
the Atlantic and the Pacific: island depth storm coast
marble and granite: stone kitchen stain price
frogs and toads: skin pond jump moisture
online courses and evening classes: teacher schedule screen classmate
phone calls and text messages: voice time reply misunderstanding
""")

PLANS = _parse_subjects("""
a birthday party for a six-year-old: cake balloon game gift
a surprise party for my boss: office secret snack speech
a three-day hike with friends: tent map food weather
a family reunion in a park: picnic game photo aunt
a charity bake sale at school: cookie table money poster
a quiet weekend at home: book nap soup bath
a picnic by the lake: blanket sandwich boat shade
a two-week trip through Italy: train pasta museum hotel
a book club's first meeting: chapter tea question chair
a neighbourhood clean-up day: bag glove park volunteer
a wedding on a small budget: dress guest flower music
a science fair project about plants: seed light soil chart
a week of vegetarian dinners: bean rice tomato soup
a move to a smaller flat: box sofa donation key
a game night for eight people: dice snack team prize
a garden party in June: lemonade chair music flower
a fundraising concert: band ticket stage donation
a first date on a rainy day: museum umbrella café film
a school trip to a castle: bus ticket lunch guide
a morning routine for busy parents: breakfast bag alarm shower
an exhibition of student art: wall frame guest light
a company's open day: visitor tour badge coffee
a workout week for beginners: rest stretch walk squat
a baby shower: gift cake game name
a farewell dinner for a colleague: speech restaurant card photo
a treasure hunt in the woods: clue map chest tree
a housewarming party: music snack neighbour key
a study plan for a history exam: date chapter quiz map
""")

QUESTIONS = _parse_subjects("""
Why do cats purr?: throat calm sound kitten
Why is the sky blue?: light scatter air sunset
How do airplanes stay in the air?: wing lift engine speed
Why do we dream?: brain sleep memory night
How is cheese made?: milk salt bacteria curd
Why do leaves change colour in autumn?: green sunlight pigment cold
How do submarines dive and surface?: tank water air pressure
What causes thunder?: lightning air heat sound
Why is seawater salty?: river rock mineral ocean
How do bees make honey?: nectar hive flower wax
Why do onions make us cry?: eye gas knife tears
How does a microwave heat food?: water wave energy plate
What happens when I crack my knuckles?: joint gas bubble sound
Why do people yawn?: brain air tired mouth
How do birds find their way south?: star sun map wing
Why does bread rise?: yeast gas dough sugar
What makes a good friend?: trust time honesty laugh
How can I fall asleep faster?: bed screen breath dark
How do I politely say no?: friend boundary excuse kindness
What should I do if I get lost in a forest?: shelter water whistle path
How can a small shop compete with a supermarket?: customer service local price
Why do some people fear public speaking?: audience heart mistake practice
What is the best way to learn new words?: card sentence repeat memory
How do I get a red wine stain out of a carpet?: salt water cloth soap
Why do stars twinkle?: air light atmosphere distance
How do I train a puppy not to bite?: toy reward patience hand
What makes a song catchy?: rhythm chorus repeat melody
How can I stop comparing myself to others?: phone goal gratitude progress
Why do cities put trees along streets?: shade heat air noise
How do noise-cancelling headphones work?: wave sound microphone silence
Why do we have leap years?: calendar sun day orbit
What did people eat in medieval Europe?: bread grain beer peasant
How can I make my old laptop faster?: memory disk program battery
Why was the Great Wall of China built?: border stone army emperor
How do fireworks get their colours?: metal heat powder spark
What should I pack for a week in Scotland?: jacket boots rain jumper
How do I choose a ripe avocado?: skin colour soft stem
Why do we shake hands?: greeting trust custom palm
How do glasses correct bad eyesight?: lens light retina focus
What is a healthy breakfast?: oats fruit egg protein
How do I split a bill fairly among friends?: share wallet waiter receipt
Why do old books smell?: paper glue page air
""")

# Each can be answered by yes, no or maybe.
VERDICTS = _parse_subjects("""
Is it a good idea to drink coffee late in the evening?: sleep
Can a person live on Mars today?: air
Should children have homework every day?: school
Is a tomato a fruit?: seed
Is it safe to leave a phone charging all night?: battery
Will electric cars replace petrol cars within ten years?: fuel
Do cats always land on their feet?: fall
Is Sydney the capital of Australia?: city
Should voting be compulsory?: law
Can money buy happiness?: joy
Is the Great Wall of China visible from the moon with the naked eye?: space
Do goldfish really have a memory of only three seconds?: fish
Is it rude to call someone after ten at night?: phone
Should zoos be closed?: animal
Is it possible to learn a language in three months?: practice
Do plants grow better with music?: sound
Is a hot dog a sandwich?: bread
Would you recommend a beginner to run a marathon?: training
Is chess a sport?: game
Will people ever travel faster than light?: speed
Should tips be included in restaurant prices?: waiter
Can dogs see colours?: eye
Is it healthy to skip breakfast?: morning
Do we use only ten percent of our brains?: brain
Is working from home better than working in an office?: desk
Should every student learn to code?: computer
Is honey safe to eat after many years?: jar
Can lightning strike the same place twice?: storm
Is it worth buying a printer in these times?: paper
Should a guest bring a gift to dinner?: host
Are bats blind?: night
Is it wise to lend money to friends?: trust
Should public transport be free?: bus
Can you see stars during the day?: sun
Is a penguin a bird?: wing
Was Napoleon unusually short for his time?: height
Should I tell my best friend that I dislike her boyfriend?: truth
Is it faster to fly than to take the train from London to Paris?: airport
Do fish sleep?: water
Is glass a liquid?: window
""")

# After `List`, `Suggest` and `Brainstorm`.
LISTS = _parse_subjects("""
ways to save water at home: shower tap garden bucket
names for a bookshop with a café: page bean corner story
gifts for a friend who has everything: time ticket plant letter
reasons to learn a second language: travel brain work culture
healthy snacks for the office: nut fruit yoghurt carrot
rainy-day activities for children: puzzle blanket paint story
topics for a school debate: phone uniform homework vote
ideas for a short film: camera actor twist ending
ways to cheer up a sick friend: soup card film joke
things to do in a new town: café market library walk
questions to ask at a job interview: team salary training future
uses for old newspapers: window paper fire gift
habits of good students: notes sleep question plan
ways to say thank you: card flower dinner smile
names for a black cat: night shadow ink moon
small ways to be kind every day: door smile seat neighbour
inventions that changed daily life: wheel light phone fridge
cheap dinners for students: rice bean egg pasta
signs that a company takes good care of its staff: salary training break trust
exercises that need no equipment: squat stairs plank walk
ways to reduce stress before an exam: breath sleep walk friend
books that a fantasy lover might enjoy: dragon magic quest map
costume ideas for a party about space: star alien silver helmet
plants that need little light: leaf corner water fern
tips for writing a good headline: word verb reader curiosity
mistakes to avoid when buying a used car: engine paper mileage price
famous rivers and what they are known for: bridge boat delta flood
ways to make a small room look bigger: mirror light shelf colour
things that every traveller forgets: charger socks passport towel
conversation starters for a long train ride: book job journey window
foods that keep well without a fridge: rice honey oats can
skills that a good manager needs: trust time feedback goal
ideas for a family photo album: holiday baby house wedding
slogans for a campaign against littering: bin street beach pride
ways to teach children about money: coin jar shop savings
""")

REVIEWS = _parse_subjects("""
a Thai restaurant that I visited last night: spice waiter noodle price
a hotel with thin walls: noise bed breakfast sleep
a comedy film about a failed bank robbery: joke actor plot laugh
a concert in a church: choir echo candle seat
a city bus tour in the rain: guide umbrella window ticket
a museum of toys: doll train childhood ticket
a new science fiction series: alien episode ship acting
a hairdresser who talked too much: scissors chair story cut
an online course about photography: lesson light teacher homework
a campsite by a lake: tent shower mosquito sunset
a bakery with a very long queue: cake wait smell counter
a play with only one actor: stage voice silence applause
a biography of a woman pilot: plane courage engine sky
a video game about farming: crop cow music season
a dentist with a sense of humour: tooth chair joke drill
a spa that smelled of fish: towel pool massage refund
a vegan burger: bean bun sauce taste
a yoga class for office workers: mat back teacher stretch
""")

JOBS = _parse_subjects("""
a night-shift nurse: patient hospital care team
a primary school teacher: class parent lesson patience
a bicycle courier: traffic parcel helmet speed
a software tester: bug report code detail
a wedding photographer: camera smile album light
a pastry chef: cake sugar kitchen morning
a park ranger: forest visitor trail wildlife
a train driver: signal station passenger safety
a freelance translator: language deadline client text
a museum guide: painting visitor history question
a veterinary assistant: dog clinic owner care
a plumber: pipe leak tool customer
a bookkeeper: invoice tax number month
a sound engineer: microphone studio band noise
a flight attendant: passenger cabin safety smile
a gardener: hedge soil season tool
a call-centre agent: customer phone patience complaint
a carpenter: wood saw table measure
a social worker: family trust report support
a data analyst: chart number report question
a lifeguard: pool whistle rescue swimmer
a hotel receptionist: guest key desk smile
a violin teacher: student bow lesson practice
a firefighter: rescue smoke team ladder
""")

SPEAKERS = (
    "a teacher and a parent",
    "two old friends",
    "a doctor and a worried patient",
    "a customer and a shopkeeper",
    "a detective and a witness",
    "a grandfather and his grandson",
    "two strangers on a train",
    "a chef and a food critic",
    "a landlord and a tenant",
    "a coach and a young player",
    "a robot and its inventor",
    "two neighbours",
    "a tourist and a local farmer",
    "a manager and a new employee",
    "a cat and a dog",
    "a librarian and a pirate",
)
ISSUES = _parse_subjects("""
a noisy party last night: music sleep wall apology
a missing library book: shelf fine page desk
the price of bread: flour coin baker oven
a broken promise: trust apology birthday word
whether to move abroad: job family language airport
a strange light in the sky: star plane field telescope
what to cook for Sunday lunch: soup chicken garden guest
the first day at a new job: desk badge nerves coffee
an old photograph: album uncle smile war
how to save a dying plant: leaf water window pot
a bad school report: grade effort exam homework
the best way to travel: train ticket map luggage
a lost key: door pocket locksmith night
the weather: cloud umbrella sun wind
a plan to open a café: rent menu coffee chair
being honest about money: debt salary budget shame
""")
